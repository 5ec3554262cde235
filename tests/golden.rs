//! `attn run` in float64 on the CPU against PyTorch's values, forward and gradients: tests/golden/make.py made them.

use assert_cmd::Command;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};
use std::collections::HashMap;
use std::path::Path;

fn reals(view: &TensorView) -> Vec<f64> {
    assert_eq!(view.dtype(), Dtype::F64);
    view.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Runs one fixture and returns how many tensors were compared.
fn check(path: &Path) -> usize {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let meta: HashMap<String, String> = header.metadata().clone().unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in.safetensors"), folder.path().join("out.safetensors"));
    let given = all.iter().filter(|(name, _)| !name.starts_with("expect."));
    serialize_to_file(given, None, &input).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_attn"));
    command.args(["run", &meta["op"], "--device", "cpu", "--input"]).arg(&input).arg("--output").arg(&output);
    command.args(meta["options"].split_whitespace()).assert().success();

    let bytes = std::fs::read(&output).unwrap();
    let got = SafeTensors::deserialize(&bytes).unwrap();
    let expected: Vec<_> = all.iter().filter_map(|(n, v)| Some((n.strip_prefix("expect.")?.to_string(), v))).collect();
    for (name, reference) in &expected {
        let got = got.tensor(name).unwrap_or_else(|_| panic!("{}: no `{name}`", path.display()));
        assert_eq!(got.shape(), reference.shape(), "{}: {name}", path.display());
        let error = attn_engine::validate::error(&reals(&got), &reals(reference));
        assert!(error <= 1e-10, "{}: {name}: error {error:.1e}", path.display());
    }
    expected.len()
}

#[test]
fn every_fixture_agrees_with_pytorch() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "safetensors"));
    let compared: usize = files.iter().map(|f| check(f)).sum();
    assert!(files.len() >= 31 && compared >= 3 * files.len(), "{} files, {compared} tensors", files.len());
}
