//! libFuzzer's way into [`penstock_mqtt_fuzz::decoder`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| penstock_mqtt_fuzz::decoder::run(input));
