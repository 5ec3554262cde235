//! nn.GRU's layers on 8 sequences of 128 vectors of width 768: 2 layers of 256 units, both ways, forward and backward:
//! `cargo bench --bench recurrence`. PyTorch's time beside it, and T over lengths: `attn bench --variants gru --peer torch`.

use attn_engine::cpu::Cpu;
use attn_engine::ops::recurrent::{Cell, Stack};
use attn_engine::philox::Philox;
use attn_engine::{Graph, Plan, PlanOptions};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::sync::Arc;
use std::time::Duration;

const SHAPE: [usize; 3] = [8, 128, 768];

fn recurrence(c: &mut Criterion) {
    let stack = Stack { cell: Cell::Gru, inputs: SHAPE[2], hidden: 256, layers: 2, directions: 2, bias: true };
    let mut graph = Graph::new();
    let x = graph.variable("x", &SHAPE);
    let mut tensors = vec![(x, 1.0)];
    let layers = stack.layers(|name, shape| {
        let t = graph.parameter(name, shape, false);
        tensors.push((t, 0.05));
        Ok(t)
    });
    let (out, _) = layers.and_then(|layers| layers.record(&mut graph, x, None, None)).expect("sizes that fit");
    let options = PlanOptions { roots: vec![out], ..Default::default() };
    let plan = Plan::new(graph, Arc::new(Cpu::<f32>::new(0)), &options).expect("memory for the plan");
    for (stream, (t, scale)) in tensors.into_iter().enumerate() {
        let generator = Philox::new(0, stream as u32, 0);
        let n = plan.graph().shape(t).iter().product::<usize>() as u64;
        let values: Vec<f64> = (0..n).map(|i| scale * generator.normal(i)).collect();
        plan.write(t, &values).expect("as many values as the tensor has");
    }
    let n = plan.graph().shape(out).iter().product();
    plan.seed(out, &vec![1.0; n]).expect("as many values as the tensor has");
    let mut group = c.benchmark_group("gru");
    group.sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(4));
    group.throughput(Throughput::Elements((SHAPE[0] * SHAPE[1]) as u64));
    group.bench_function("forward", |b| b.iter(|| plan.forward().expect("it runs")));
    // Backward may reuse memory that forward's values were in, so the two are timed together.
    group.bench_function("forward+backward", |b| {
        b.iter(|| plan.forward().and_then(|()| plan.backward()).expect("it runs"));
    });
    group.finish();
}

criterion_group!(benches, recurrence);
criterion_main!(benches);
