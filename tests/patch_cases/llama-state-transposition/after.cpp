    // attn_rot_v
    if (this->v_trans != (bool) v_trans) {
        // pyggmlq:begin llama-state-transposition
        ggmlq_llama_explain_transposition(v_trans);
        // pyggmlq:end llama-state-transposition
        LLAMA_LOG_ERROR("%s: incompatible V transposition\n", __func__);
        return false;
    }
