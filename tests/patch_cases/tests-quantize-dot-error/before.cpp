            const float max_allowed_error = type == A || type == B ||
                                            type == C
                                          ? 1
                                          : 0;
