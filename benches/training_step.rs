//! One training step of gpt-nano (vocabulary 65, 16 blocks of 128 tokens) on the CPU, for each attention variant.

use attn_engine::cpu::Cpu;
use attn_engine::data::Batch;
use attn_engine::model::gpt::attention_variants;
use attn_engine::model::{Gpt, GptConfig, PRESETS};
use attn_engine::optimizer::{OptimizerName, OptimizerSettings};
use attn_engine::train::{StepOptions, TrainingStep};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::sync::Arc;

const VOCABULARY: usize = 65;
const BLOCK: usize = 128;
const ROWS: usize = 16;

fn training_step(c: &mut Criterion) {
    let mut group = c.benchmark_group("training-step");
    group.throughput(Throughput::Elements((ROWS * BLOCK) as u64));
    let preset = PRESETS[0];
    for attention in attention_variants() {
        let gpt = Gpt::new(GptConfig {
            layers: preset.layers,
            heads: preset.heads,
            width: preset.width,
            block: BLOCK,
            vocabulary: VOCABULARY,
            attention: vec![attention.into()],
            ..Default::default()
        })
        .expect("a preset is a valid model");
        let options = StepOptions::new(OptimizerSettings::of(OptimizerName::AdamW), 1);
        let graph = gpt.loss(ROWS, 0.0).expect("a valid model records");
        let mut step = TrainingStep::new(graph, Arc::new(Cpu::<f32>::new(0)), options).expect("it fits");
        gpt.initialize(step.plan(), 1).expect("the CPU does not fail");
        let tokens: Vec<i32> = (0..ROWS * BLOCK).map(|i| (i * i % VOCABULARY) as i32).collect();
        let targets = tokens.iter().map(|t| (t + 1) % VOCABULARY as i32).collect();
        let batches = [Batch { tokens, targets, lengths: vec![BLOCK as i32; ROWS] }];
        let mut done = 0;
        group.bench_function(format!("{}/{attention}", preset.name), |b| {
            b.iter(|| {
                done += 1;
                step.run(done, 3e-3, &batches).expect("the CPU does not fail")
            })
        });
    }
    group.finish();
}

criterion_group!(benches, training_step);
criterion_main!(benches);
