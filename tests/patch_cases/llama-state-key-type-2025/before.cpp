            if (k_type_i != k_type_i_ref) {
                LLAMA_LOG_ERROR("%s: mismatched key type (%d)\n", __func__, k_type_i);
                return false;
            }
