    attn_rot_k = other ? other->attn_rot_k : quantized;

    if (attn_rot_k || attn_rot_v) {
        make_matrices();
    }
}
