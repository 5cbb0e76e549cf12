void other() {
    for (uint32_t il = 0; il < layers.size(); ++il) {
    }
}
bool llama_kv_cache::update(llama_context * lctx) {
            // pyggmlq:begin center-cache-copy-stream
            for (const auto & layer : ggmlq_center->layers) {
                if (layer.part) {
                    ggml_backend_tensor_copy(layer.part_stream[ssrc], layer.part_stream[sdst]);
                }
            }
            // pyggmlq:end center-cache-copy-stream
            for (uint32_t il = 0; il < layers.size(); ++il) {
            }
}
