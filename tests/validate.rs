//! Every op's every case, on the CPU: the fast implementation against the definition, in both precisions.

use attn_engine::Device;
use attn_engine::cpu::Cpu;
use attn_engine::ops::OPS;
use attn_engine::validate::{Row, validate};
use std::sync::Arc;

fn check(device: Arc<dyn Device>) {
    let mut rows: Vec<Row> = Vec::new();
    validate(OPS, &device, &|_| vec![(String::new(), Box::new(|| ()))], &mut |new| rows.extend_from_slice(new))
        .unwrap();
    assert!(!rows.is_empty());
    let failed: Vec<&Row> = rows.iter().filter(|r| !r.passed).collect();
    assert!(failed.is_empty(), "{} of {} failed: {failed:#?}", failed.len(), rows.len());
}

#[test]
fn cpu_f64_agrees_with_the_definition() {
    check(Arc::new(Cpu::<f64>::new(0)));
}

#[test]
fn cpu_f32_agrees_with_the_definition() {
    check(Arc::new(Cpu::<f32>::new(0)));
}
