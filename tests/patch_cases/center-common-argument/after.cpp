    add_opt(common_arg(
        {"-ctv", "--cache-type-v"}, "TYPE",
        "KV cache data type for V",
        [](common_params & params, const std::string & value) {
            params.cache_type_v = kv_cache_type_from_str(value);
        }
    ).set_env("LLAMA_ARG_CACHE_TYPE_V"));
    // pyggmlq:begin center-common-argument
    add_opt(common_arg(
        {"--kv-center"}, "MODE",
        "store keys in the KV cache without the mean that they share, which attention adds again\n"
        "- off: keys as they are\n"
        "- auto: keys of the 3-bit types are centered, calibrated once for a model\n"
        "- all: keys of any type are centered\n"
        "- a file that `pyggmlq calibrate` has made for this model: as auto, by that calibration\n"
        "(default: auto)",
        [](common_params & params, const std::string & value) {
            if (!value.empty() && value != "off" && value != "auto" && value != "all" && !std::ifstream(value).good()) {
                throw std::invalid_argument("it is '" + value + "', wanted off, auto, all or a file that `pyggmlq calibrate` has made");
            }
            params.ggmlq_kv_center = value.empty() ? "auto" : value;
        }
    ).set_env("GGMLQ_KV_CENTER"));
    // pyggmlq:end center-common-argument
    add_opt(common_arg(
        {"-ctvd", "--cache-type-v-draft"}, "TYPE",
        "KV cache data type for V of the draft model",
        [](common_params & params, const std::string & value) {
            params.speculative.draft.cache_type_v = kv_cache_type_from_str(value);
        }
    ).set_env("LLAMA_ARG_CACHE_TYPE_V_DRAFT"));
