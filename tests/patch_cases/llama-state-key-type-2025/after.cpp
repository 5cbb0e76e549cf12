            if (k_type_i != k_type_i_ref) {
                // pyggmlq:begin llama-state-key-type-2025
                ggmlq_llama_explain_state_type("K", k_type_i_ref, k_type_i);
                // pyggmlq:end llama-state-key-type-2025
                LLAMA_LOG_ERROR("%s: mismatched key type (%d)\n", __func__, k_type_i);
                return false;
            }
