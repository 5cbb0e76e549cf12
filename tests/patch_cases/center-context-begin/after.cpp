        // pyggmlq:begin center-context-begin
        ggmlq_center_start = ggmlq_llama_center_begin(*this, params);

        // pyggmlq:end center-context-begin
        sched_reserve();

        if (!cparams.flash_attn) {
        }
