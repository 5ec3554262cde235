//! Event files that TensorBoard reads.
//!
//! A file is a row of records: length (u64), masked CRC-32C of that, data, masked CRC-32C of the data
//! (tensorflow/core/lib/io/record_writer.h). The data is a protocol buffer `Event` (tensorflow/core/util/event.proto), of
//! which the few fields here are written by hand: three messages are not worth a code generator.

use crate::error::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// What event files' names begin with.
const PREFIX: &str = "events.out.tfevents.";

/// An open event file. Every event is written at once.
#[derive(Debug)]
pub struct Events {
    path: PathBuf,
    file: File,
}

/// The fields of a message, as bytes.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn key(&mut self, field: u32, wire: u32) {
        self.varint(u64::from(field << 3 | wire));
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn int(mut self, field: u32, value: u64) -> Message {
        self.key(field, 0);
        self.varint(value);
        self
    }

    fn double(mut self, field: u32, value: f64) -> Message {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn float(mut self, field: u32, value: f32) -> Message {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, field: u32, value: &[u8]) -> Message {
        self.key(field, 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    fn message(self, field: u32, value: Message) -> Message {
        self.bytes(field, &value.0)
    }
}

/// A CRC of data that holds CRCs would be weak: they are rotated and shifted.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = length.to_vec();
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(data);
    record.extend(masked_crc(data).to_le_bytes());
    record
}

/// An event at this moment.
fn event(step: u64) -> Message {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Message::default().double(1, now.as_secs_f64()).int(2, step)
}

/// A number of a summary.
fn scalar(tag: &str, value: f64) -> Message {
    Message::default().bytes(1, tag.as_bytes()).float(2, value as f32)
}

/// A text of a summary, for the text plugin: a tensor of one string.
fn text(tag: &str, text: &str) -> Message {
    const STRING: u64 = 7;
    let shape = Message::default().message(2, Message::default().int(1, 1));
    let tensor = Message::default().int(1, STRING).message(2, shape).bytes(8, text.as_bytes());
    let plugin = Message::default().bytes(1, b"text");
    let metadata = Message::default().message(1, plugin);
    Message::default().bytes(1, tag.as_bytes()).message(9, metadata).message(8, tensor)
}

fn failed(path: &Path, e: std::io::Error) -> Error {
    Error::file(path, format!("cannot be written: {e}"), "give an --out on a disk with space that you may write to")
}

fn all(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|e| e.file_name().to_string_lossy().starts_with(PREFIX)).map(|e| e.path()).collect()
}

/// Removes the event files of a directory.
///
/// # Errors
/// If one cannot be removed.
pub fn remove(directory: &Path) -> Result<()> {
    all(directory).into_iter().try_for_each(|path| {
        std::fs::remove_file(&path)
            .map_err(|e| Error::file(&path, format!("cannot be removed: {e}"), "give another --out"))
    })
}

impl Events {
    /// Starts a new file in `directory` for steps from `first` on: of earlier files, TensorBoard drops those steps.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn open(directory: &Path, first: u64) -> Result<Events> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        // TensorBoard reads files in the order of their names.
        let number = all(directory).len();
        let path = directory.join(format!("{PREFIX}{now:010}.{number:04}.attn"));
        let file = OpenOptions::new().create_new(true).append(true).open(&path).map_err(|e| failed(&path, e))?;
        let mut events = Events { path, file };
        events.write(event(0).bytes(3, b"brain.Event:2"))?;
        const START: u64 = 1;
        events.write(event(first).message(7, Message::default().int(1, START)))?;
        Ok(events)
    }

    /// Numbers of a step.
    ///
    /// # Errors
    /// If the disk is full.
    pub fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<()> {
        let summary = scalars.iter().fold(Message::default(), |s, (tag, value)| s.message(1, scalar(tag, *value)));
        self.write(event(step).message(5, summary))
    }

    /// A text of a step, shown as Markdown.
    ///
    /// # Errors
    /// If the disk is full.
    pub fn text(&mut self, step: u64, tag: &str, markdown: &str) -> Result<()> {
        self.write(event(step).message(5, Message::default().message(1, text(tag, markdown))))
    }

    fn write(&mut self, event: Message) -> Result<()> {
        self.file.write_all(&record(&event.0)).map_err(|e| failed(&self.path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720's test vector, masked as TensorFlow's crc32c.h has it; varints as in protobuf's encoding guide.
    #[test]
    fn records_are_framed_as_tensorflow_frames_them() {
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(masked_crc(&[0; 32]), 0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8));
        let framed = record(b"abc");
        assert_eq!(framed[..8], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!((framed.len(), &framed[12..15]), (8 + 4 + 3 + 4, &b"abc"[..]));
        assert_eq!(Message::default().int(1, 150).0, [0x08, 0x96, 0x01]);
        assert_eq!(Message::default().bytes(2, b"testing").0, b"\x12\x07testing");
        assert_eq!(scalar("a", 1.5).0, [0x0a, 1, b'a', 0x15, 0, 0, 0xc0, 0x3f]);
    }

    #[test]
    fn files_are_in_the_order_of_their_names() {
        let directory = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = (0..3).map(|i| Events::open(directory.path(), i).unwrap().path).collect();
        assert!(paths.is_sorted() && all(directory.path()).len() == 3);
        remove(directory.path()).unwrap();
        assert!(all(directory.path()).is_empty());
    }
}
