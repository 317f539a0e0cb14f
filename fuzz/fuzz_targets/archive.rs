#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| thawfs_fuzz::archive(input));
