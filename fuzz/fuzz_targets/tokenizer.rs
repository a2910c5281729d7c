#![no_main]

// `tokenizers` asserts some of what a file says, and attar catches that: only a panic that escapes
// is a fault, and that ends the process without a hook too.
libfuzzer_sys::fuzz_target!(
    init: std::panic::set_hook(Box::new(|_| {})),
    |input: &[u8]| attar_fuzz::tokenizer(input)
);
