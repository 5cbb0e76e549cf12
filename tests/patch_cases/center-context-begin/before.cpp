        sched_reserve();

        if (!cparams.flash_attn) {
        }
