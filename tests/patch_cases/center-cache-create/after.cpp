    }

    // pyggmlq:begin center-cache-create
    ggmlq_center = other ? other->ggmlq_center : std::make_shared<ggmlq_llama_center>();
    if (!other) {
        ggmlq_center->type_v = type_v;
    }

    // pyggmlq:end center-cache-create
    const char * LLAMA_KV_CACHE_DEBUG = getenv("LLAMA_KV_CACHE_DEBUG");
}
