//! `attn bench --peer torch` with stand-ins for Python: what is asked, what becomes of the answers, and what goes wrong.
#![cfg(unix)]

use assert_cmd::Command;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// A folder with a `python` that is a shell script.
struct Bed(tempfile::TempDir);

impl Bed {
    fn new(script: &str) -> Bed {
        let bed = Bed(tempfile::tempdir().expect("a folder for temporary files"));
        let python = bed.path("python");
        std::fs::write(&python, format!("#!/bin/sh\ncd '{}'\n{script}", bed.0.path().display())).expect("writable");
        std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).expect("ours");
        bed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect("it was written")
    }

    /// Runs, expects the exit code, and returns stdout and stderr.
    fn bench(&self, code: i32, more: &[&str]) -> (String, String) {
        let mut command = Command::cargo_bin("attn").expect("the binary is built");
        command.args([
            "bench",
            "--device",
            "cpu",
            "--threads",
            "1",
            "--heads",
            "2",
            "--head-dim",
            "8",
            "--lengths",
            "8,16",
        ]);
        command.args(["--peer", "torch", "--python"]).arg(self.path("python"));
        let output = command.arg("--json").arg(self.path("bench.json")).args(more).output().expect("it starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{out}{err}");
        assert!(!err.contains("panicked"), "{err}");
        (out, err)
    }

    fn refused(&self, names: &[&str]) {
        let (_, err) = self.bench(2, &["--variants", "softmax-attention"]);
        assert!(err.starts_with("error: "), "{err}");
        for name in names {
            assert!(err.contains(name), "{name} is not in: {err}");
        }
    }
}

/// Answers as the script does: one backend times, another refuses.
const ANSWERS: &str = r#"
grep -c scaled_dot_product_attention "$2" > script
read setting; echo "$setting" > setting
echo '{"version": "9.8", "backends": {"softmax-attention": ["flash", "cudnn"], "linear-attention": ["plain"]}}'
while read request; do
    echo "$request" >> requests
    case "$request" in
        *cudnn*) echo '{"refused": "No cuDNN on a teapot."}' ;;
        *) echo '{"samples": [4000.0, 1000.0, 2000.0], "peak_bytes": 4096}' ;;
    esac
done
"#;

#[test]
fn every_case_is_asked_in_turns_and_both_are_shown() {
    let bed = Bed::new(ANSWERS);
    let variants = "softmax-attention,linear-attention,mean-similarity-attention";
    let (table, _) = bed.bench(0, &["--variants", variants, "--dtype", "bf16", "--causal", "--direction", "both"]);
    let setting: Value = serde_json::from_str(&bed.read("setting")).expect("JSON");
    let expected = serde_json::json!({
        "device": "cpu", "threads": 1, "dtype": "bf16", "tf32": false, "batch": 1, "heads": 2, "head_dim": 8, "causal": true,
        "direction": "both", "features": {
            "kv_heads": 2, "window": null, "softcap": null, "alibi": false, "dropout": null, "bias": false, "mask": false,
            "ragged": false, "unordered": false
        },
        "recurrence": { "hidden": 16, "inputs": 16, "layers": 1, "bidirectional": false }
    });
    assert_eq!(setting, expected);
    assert_ne!(bed.read("script").trim(), "0", "the script came along");

    // Three rounds of each, less those after a refusal; nothing where it has no backend.
    let requests = bed.read("requests");
    let count = |backend: &str, length: usize| {
        let asks = |line: &&str| line.contains(backend) && line.contains(&format!("\"length\":{length},"));
        requests.lines().filter(asks).count()
    };
    assert_eq!([count("flash", 8), count("flash", 16), count("cudnn", 16), count("plain", 8)], [3, 3, 1, 3]);
    assert!(!requests.contains("mean-similarity"), "{requests}");

    let file: Value = serde_json::from_str(&bed.read("bench.json")).expect("JSON");
    assert_eq!(file["rows"].as_array().unwrap().len(), 6, "one row a variant and length, as without a peer");
    let peers = file["peers"].as_array().unwrap();
    let found: Vec<_> = peers.iter().map(|p| (p["backend"].as_str().unwrap(), p["length"].as_u64().unwrap())).collect();
    assert_eq!(found, [("flash", 8), ("cudnn", 8), ("flash", 16), ("cudnn", 16), ("plain", 8), ("plain", 16)]);
    let (ours, flash, cudnn) = (&file["rows"][0], &peers[0], &peers[1]);
    assert_eq!((ours["variant"].as_str(), ours["length"].as_u64()), (Some("softmax-attention"), Some(8)));
    for key in ["variant", "direction", "device", "dtype", "batch", "heads", "length", "head_dim", "causal", "kv_heads"]
    {
        assert_eq!(flash[key], ours[key], "{key}");
        assert_eq!(cudnn[key], ours[key], "{key}");
    }
    assert_eq!((flash["peer"].as_str(), flash["version"].as_str()), (Some("torch"), Some("9.8")));
    assert_eq!((flash["median_ms"].as_f64(), flash["min_ms"].as_f64()), (Some(2000.0), Some(1000.0)));
    assert_eq!(flash["peak_bytes"].as_u64(), Some(4096));
    // Counted as ours: the same operations, in its time.
    let operations = |row: &Value| row["tflops"].as_f64().unwrap() * row["median_ms"].as_f64().unwrap();
    assert!((operations(flash) / operations(ours) - 1.0).abs() < 1e-9);
    let ratio = flash["ratio"].as_f64().unwrap();
    assert!(ratio > 0.0 && ratio < 0.5, "microseconds of work against two seconds: {ratio}");
    assert!(flash["refused"].is_null() && cudnn["median_ms"].is_null() && cudnn["ratio"].is_null());
    assert_eq!(cudnn["refused"].as_str(), Some("No cuDNN on a teapot."));
    assert!(table.contains("  torch flash") && table.contains("ratio") && table.contains("9.8"), "{table}");
    assert!(table.contains("torch cudnn at T = 8, 16, softmax-attention: No cuDNN on a teapot."), "{table}");
}

#[test]
fn a_peer_that_is_not_there_is_named_with_its_remedy() {
    Bed::new(r#"read setting; echo '{"error": "cannot import torch: No module named torch"}'"#).refused(&[
        "python",
        "No module named torch",
        "-m pip install torch",
        "--python",
    ]);
    Bed::new(r#"read setting; echo '{"error": "PyTorch 2.0 there finds no CUDA device"}'"#)
        .refused(&["finds no CUDA device", "--device cpu"]);
    Bed::new("echo 'Segmentation fault' >&2; exit 139").refused(&["ended", "Segmentation fault", "--python"]);
    Bed::new("read setting; echo Python 2.7").refused(&["`Python 2.7`", "--python"]);
    let bed = Bed::new("");
    std::fs::remove_file(bed.path("python")).expect("it was made");
    bed.refused(&["--python", "does not start"]);
}

#[test]
fn a_peer_that_fails_on_the_way_is_an_error() {
    let hello = r#"read setting; echo '{"version": "1", "backends": {"softmax-attention": ["flash"]}}'; read request;"#;
    Bed::new(&format!("{hello} echo 'Killed by a test' >&2")).refused(&["ended", "Killed by a test"]);
    Bed::new(&format!("{hello} echo '{{\"samples\": []}}'; read end")).refused(&["without a sample"]);
}

#[test]
fn what_does_not_go_together_is_refused() {
    let refused = |arguments: &[&str], name: &str| {
        let output = Command::cargo_bin("attn").expect("the binary is built").args(arguments).output().expect("starts");
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && err.contains(name), "{arguments:?}: {err}");
    };
    refused(&["bench", "--peer", "jax"], "jax");
    refused(&["bench", "--python", "python3"], "--peer");
    refused(&["bench", "--peer", "torch", "--device", "emulator"], "emulator");
}
