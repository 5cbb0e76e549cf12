class llama_kv_cache : public llama_memory_i {
public:
    bool get_has_shift() const;
// pyggmlq:begin llama-state-rotation

    struct ggmlq_llama_rotation ggmlq_rotation_k() const;
// pyggmlq:end llama-state-rotation

private:
    bool attn_rot_k = false;
};
