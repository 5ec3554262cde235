//! The binary, run in a folder of its own. Each test file takes of it what it needs.
#![allow(dead_code)]

use assert_cmd::Command;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// A folder for a test, and the binary that runs in it.
pub struct Place(pub tempfile::TempDir);

impl Place {
    pub fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn text(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), text).unwrap();
        name.into()
    }

    /// Runs `attn`, which must succeed, and returns what it printed.
    pub fn attn(&self, line: &str) -> String {
        let output = self.command(line).assert().success();
        String::from_utf8(output.get_output().stdout.clone()).unwrap()
    }

    /// The same on a device by name; what it said on stderr where it failed.
    pub fn attn_on(&self, device: &str, line: &str) -> Result<String, String> {
        let mut command = Command::cargo_bin("attn").unwrap();
        let output = command
            .current_dir(self.0.path())
            .args(line.split_whitespace())
            .args(["--device", device])
            .output()
            .unwrap();
        let [said, errors] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        if output.status.success() { Ok(said) } else { Err(errors) }
    }

    /// Runs `attn`, which must fail with code 2 and say these words.
    pub fn refuses(&self, line: &str, words: &[&str]) {
        let output = self.command(line).assert().code(2);
        let message = String::from_utf8(output.get_output().stderr.clone()).unwrap();
        for word in words {
            assert!(message.contains(word), "{line}: {word:?} is missing in {message}");
        }
        assert!(!message.contains("panicked"), "{line}: {message}");
    }

    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::cargo_bin("attn").unwrap();
        command.current_dir(self.0.path()).args(line.split_whitespace());
        if !line.starts_with("-") {
            command.args(["--device", "cpu", "--threads", "1"]);
        }
        command
    }

    pub fn rows(&self, run: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.path(run).join("log.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The losses of a run's steps, as bits.
    pub fn losses(&self, run: &str) -> Vec<u64> {
        self.rows(run).iter().filter_map(|row| Some(row["loss"].as_f64()?.to_bits())).collect()
    }
}

/// Two directories have these files alike, to the byte.
pub fn same_files(a: &Path, b: &Path, names: &[&str]) {
    for name in names {
        assert_eq!(fs::read(a.join(name)).unwrap(), fs::read(b.join(name)).unwrap(), "{name}");
    }
}
