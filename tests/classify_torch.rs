//! Fifty losses of every classifier beside PyTorch's, from the same weights and texts: `benches/peers/classify_torch.py
//! fixtures` made them, in float64.

use attn_engine::Device;
use attn_engine::cpu::Cpu;
use attn_engine::model::classifier::{ClassifierConfig, Plans};
use attn_engine::optimizer::{OptimizerName, OptimizerSettings};
use attn_engine::train::classify::ClassifierStep;
use safetensors::SafeTensors;
use std::path::Path;
use std::sync::Arc;

#[derive(serde::Deserialize)]
struct Settings {
    optimizer: OptimizerName,
    lr: f64,
    #[serde(default)]
    weight_decay: f64,
    #[serde(default)]
    weight_decay_l2: f64,
}

#[derive(serde::Deserialize)]
struct Described {
    config: ClassifierConfig,
    settings: Settings,
}

fn reals(file: &SafeTensors, name: &str) -> Vec<f64> {
    let tensor = file.tensor(name).unwrap_or_else(|_| panic!("no `{name}`"));
    tensor.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
}

fn ints(file: &SafeTensors, name: &str) -> Vec<i32> {
    file.tensor(name).unwrap().data().chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// The largest relative error of the losses on a device.
fn error(path: &Path, device: Arc<dyn Device>) -> f64 {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let described: Described = serde_json::from_str(&header.metadata().as_ref().unwrap()["case"]).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let Settings { optimizer, lr, weight_decay, weight_decay_l2 } = described.settings;
    let settings = OptimizerSettings {
        lr,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay,
        weight_decay_l2,
        max_norm: f64::INFINITY,
        ..OptimizerSettings::of(optimizer)
    };
    let slots = settings.optimizer(0).state().len();
    let plans = Plans::new(&described.config, 4, 20, Some(slots), device).unwrap();
    let graph = plans.plan().graph();
    let tensors: Vec<_> = graph.parameters().into_iter().chain(graph.frozen_tensors()).collect();
    let given = file.names().iter().filter(|name| name.starts_with("parameter.")).count();
    assert_eq!(tensors.len(), given, "{}: tensors of the model", path.display());
    for &t in &tensors {
        plans.plan().write(t, &reals(&file, &format!("parameter.{}", graph.name(t)))).unwrap();
    }
    let (tokens, lengths, targets) = (ints(&file, "tokens"), ints(&file, "lengths"), ints(&file, "targets"));
    let row = |i: usize| (&tokens[i * 20..][..lengths[i] as usize], Some(targets[i] as u32));
    let mut step = ClassifierStep::new(plans, settings, 0);
    let expected = reals(&file, "losses");
    assert_eq!(expected.len(), 50);
    let errors = expected.iter().enumerate().map(|(i, expected)| {
        let rows: Vec<(&[i32], Option<u32>)> = (0..4).map(|r| row((4 * i + r) % 24)).collect();
        let loss = step.run(i as u64, lr, &rows).unwrap();
        (loss - expected).abs() / expected.abs()
    });
    errors.fold(0.0, |worst, e| if e.is_nan() { f64::INFINITY } else { worst.max(e) })
}

#[test]
fn fifty_losses_are_pytorchs() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/classify");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 16, "{} models", files.len());
    let mut failures = Vec::new();
    for file in &files {
        let name = file.file_stem().unwrap().to_string_lossy();
        let (single, double) = (error(file, Arc::new(Cpu::<f32>::new(1))), error(file, Arc::new(Cpu::<f64>::new(1))));
        println!("{name}: {single:.1e} in f32, {double:.1e} in f64");
        if single > 1e-5 || double > 1e-9 {
            failures.push(format!("{name}: {single:.1e} in f32, {double:.1e} in f64"));
        }
    }
    assert!(failures.is_empty(), "{failures:?}");
}
