            const float max_quantization_error =
                type == A ? 1 :
                0;
