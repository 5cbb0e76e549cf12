ggml_metal_library_t ggml_metal_library_init_from_source(ggml_metal_device_t dev, const char * source, bool verbose) {
    @autoreleasepool {
        MTLCompileOptions * options = [MTLCompileOptions new];
        options.preprocessorMacros = prep;
        // pyggmlq:begin metal-plain-arithmetic
        if (ggmlq_ggml_metal_is_source(source)) {
            [options setFastMathEnabled:NO];
        }
        // pyggmlq:end metal-plain-arithmetic
        library = [device newLibraryWithSource:src options:options error:&error];
    }
}
