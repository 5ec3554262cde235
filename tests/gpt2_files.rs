//! Others' models: logits are transformers', and weights go to and from its layouts and minGPT's.

use assert_cmd::Command;
use attn_engine::cpu::Cpu;
use attn_engine::model::weights;
use attn_engine::model::{Gpt, GptConfig};
use attn_engine::{Device, Graph, Plan, PlanOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gpt2").join(name)
}

/// The largest difference of our logits from those in `expected.safetensors`, with the weights at `path`.
fn difference(model: &Path, path: &Path, config: GptConfig, device: Arc<dyn Device>) -> f64 {
    let expected = attn_engine::io::tensors::read(&model.join("expected.safetensors")).unwrap();
    let attn_engine::run_spec::Given::Int(shape, tokens) = &expected["tokens"].given else {
        panic!("tokens are integers")
    };
    let attn_engine::run_spec::Given::Real(_, logits) = &expected["logits"].given else { panic!("logits are reals") };
    let tied = config.tied;
    let vocabulary = config.vocabulary as i64;
    let gpt = Gpt::new(config).unwrap();
    let mut graph = Graph::new();
    let input = graph.indices("tokens", shape, 0..vocabulary);
    let output = gpt.logits(&mut graph, input, Default::default()).unwrap();
    let plan = Plan::new(graph, device, &PlanOptions { keep: vec![output], ..Default::default() }).unwrap();
    weights::to_plan(&plan, weights::import(path).unwrap(), tied, path).unwrap();
    plan.write_indices(input, &tokens.iter().map(|&t| t as i32).collect::<Vec<_>>()).unwrap();
    plan.forward().unwrap();
    let largest = logits.iter().fold(0.0f64, |max, x| max.max(x.abs()));
    assert!(largest > 1.0, "logits that tell something");
    let found = plan.read(output).unwrap();
    found.iter().zip(logits).map(|(a, b)| (a - b).abs() / largest).fold(0.0, f64::max)
}

fn f64s() -> Arc<dyn Device> {
    Arc::new(Cpu::<f64>::new(1))
}

#[test]
fn logits_are_those_of_transformers() {
    for name in ["tied", "untied-sharded", "old-names"] {
        let model = golden(name);
        let config = GptConfig::read(&model.join("config.json")).unwrap();
        assert!(config.is_gpt2());
        let path = weights::file_in(&model).unwrap();
        let exact = difference(&model, &path, config.clone(), f64s());
        assert!(exact < 1e-12, "{name}: {exact:e} in f64");
        let single = difference(&model, &path, config, Arc::new(Cpu::<f32>::new(1)));
        assert!(single < 1e-5, "{name}: {single:e} in f32");
    }
}

#[test]
fn a_state_dict_of_mingpt_is_the_same_model() {
    let model = golden("tied");
    let config = GptConfig { tied: false, ..GptConfig::read(&model.join("config.json")).unwrap() };
    let found = difference(&model, &golden("mingpt.pt"), config, f64s());
    assert!(found < 1e-12, "{found:e}");
}

#[test]
fn a_head_that_is_not_the_embedding_is_no_tied_head() {
    let model = golden("untied-sharded");
    let config = GptConfig { tied: true, ..GptConfig::read(&model.join("config.json")).unwrap() };
    let gpt = Gpt::new(config).unwrap();
    let plan = Plan::new(gpt.loss(1, 0.0).unwrap().graph, f64s(), &PlanOptions::default()).unwrap();
    let path = weights::file_in(&model).unwrap();
    let error = weights::to_plan(&plan, weights::import(&path).unwrap(), true, &path).unwrap_err().to_string();
    assert!(error.contains("tensor `lm_head.weight` is not the token embedding"), "{error}");
}

struct Place(tempfile::TempDir);

impl Place {
    /// Runs `attn` here and gives what it wrote to stderr.
    fn attn(&self, code: i32, line: &str) -> String {
        let mut command = Command::cargo_bin("attn").unwrap();
        command.current_dir(self.0.path()).args(line.split_whitespace());
        String::from_utf8(command.assert().code(code).get_output().stderr.clone()).unwrap()
    }

    fn losses(&self, run: &str) -> Vec<f64> {
        let log = std::fs::read_to_string(self.0.path().join(run).join("log.jsonl")).unwrap();
        let rows = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        rows.filter_map(|row| row["loss"].as_f64()).collect()
    }
}

#[test]
fn exported_weights_go_on_as_the_checkpoint_does() {
    let place = Place(tempfile::tempdir().unwrap());
    let train = "train lm --device cpu --threads 1 --batch-size 2 --save-every 0 --dropout 0";
    place.attn(0, &format!("{train} --layers 2 --heads 2 --width 8 --tie-weights --steps 1 --lr 0.1 --out run"));
    place.attn(0, "export --checkpoint run --format mingpt --out model.pt");
    place.attn(0, "export --checkpoint run --format gpt2 --out hf");
    assert!(!place.0.path().join("hf/optimizer.safetensors").exists());
    // Without flags of its size: hf/config.json says it. The state dict says nothing but its tensors.
    place.attn(0, &format!("{train} --steps 2 --init hf --out a"));
    place.attn(0, &format!("{train} --steps 2 --init run --out b"));
    place.attn(0, &format!("{train} --layers 2 --heads 2 --width 8 --tie-weights --steps 2 --init model.pt --out c"));
    assert_eq!(place.losses("a"), place.losses("b"));
    assert_eq!(place.losses("a"), place.losses("c"));
    // Back to transformers' layout, from minGPT's file.
    place.attn(0, "export --checkpoint run --weights model.pt --format gpt2 --out back");
    let files = ["hf", "back"].map(|d| std::fs::read(place.0.path().join(d).join("model.safetensors")).unwrap());
    assert_eq!(files[0], files[1]);

    let again = place.attn(2, "export --checkpoint run --format mingpt --out model.pt");
    assert!(again.contains("model.pt: exists already"), "{again}");
    let missing = place.attn(2, &format!("{train} --init nowhere.pt --out d"));
    assert!(missing.contains("nowhere.pt: does not exist"), "{missing}");
    std::fs::write(place.0.path().join("text.pt"), "hello").unwrap();
    let text = place.attn(2, &format!("{train} --init text.pt --out d"));
    assert!(text.contains("text.pt: is no zip archive"), "{text}");
    place.attn(0, &format!("{train} --positions rotary --steps 1 --out rotary"));
    let rotary = place.attn(2, "export --checkpoint rotary --format gpt2 --out e");
    assert!(rotary.contains("is no GPT-2: its positions are not learned"), "{rotary}");
    assert!(!place.0.path().join("d").exists() && !place.0.path().join("e").exists());
}
