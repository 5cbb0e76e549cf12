            if (v_type_i != v_type_i_ref) {
                // pyggmlq:begin llama-state-value-type-2025
                ggmlq_llama_explain_state_type("V", v_type_i_ref, v_type_i);
                // pyggmlq:end llama-state-value-type-2025
                LLAMA_LOG_ERROR("%s: mismatched value type (%d)\n", __func__, v_type_i);
            }
                if (v_type_i != v_type_i_ref) {
                    // pyggmlq:begin llama-state-value-type-2025
                    ggmlq_llama_explain_state_type("V", v_type_i_ref, v_type_i);
                    // pyggmlq:end llama-state-value-type-2025
                    LLAMA_LOG_ERROR("%s: mismatched value type (%d)\n", __func__, v_type_i);
                }
