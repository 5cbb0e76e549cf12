class llama_kv_cache : public llama_memory_i {
public:
    bool get_has_shift() const;

private:
    bool attn_rot_k = false;
};
