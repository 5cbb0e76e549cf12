ggml_metal_library_t ggml_metal_library_init_from_source(ggml_metal_device_t dev, const char * source, bool verbose) {
    @autoreleasepool {
        MTLCompileOptions * options = [MTLCompileOptions new];
        options.preprocessorMacros = prep;
        library = [device newLibraryWithSource:src options:options error:&error];
    }
}
