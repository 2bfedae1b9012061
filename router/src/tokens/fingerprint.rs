//! `model_hash`: names the weights and their tokenizer, so that a router and a worker with
//! different models never meet. Both compute it the same way (see `dopd/weights`).

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::MadeUp;

/// Read from the start and from the end of each weight file.
const SAMPLE_BYTES: u64 = 1 << 20;
/// Hashed whole, in this order, if the folder has them.
const WHOLE: [&str; 3] = [
    "config.json",
    "tokenizer.json",
    "model.safetensors.index.json",
];

/// sha256 over name, size and content of the small files, and over name, size, first and last MiB
/// of each weight file. `path` is a folder with `*.safetensors`, a `.gguf` file, or the name of a
/// made-up model.
pub(super) fn model_hash(path: &Path) -> io::Result<[u8; 32]> {
    if let Some(model) = MadeUp::parse(path) {
        return Ok(model.map_err(io::Error::other)?.model_hash());
    }
    let mut hash = Sha256::new();
    if path.is_file() {
        weights(&mut hash, path)?;
        return Ok(hash.finalize().into());
    }
    for name in WHOLE {
        let file = path.join(name);
        if file.is_file() {
            let content = fs::read(&file)?;
            head(&mut hash, name, content.len() as u64);
            hash.update(&content);
        }
    }
    let mut files = with_extension(path, "safetensors")?;
    if files.is_empty() {
        files = with_extension(path, "gguf")?;
    }
    for file in files {
        weights(&mut hash, &file)?;
    }
    Ok(hash.finalize().into())
}

fn with_extension(folder: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == extension) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn head(hash: &mut Sha256, name: &str, size: u64) {
    hash.update(name.as_bytes());
    hash.update([0]);
    hash.update(size.to_le_bytes());
}

fn weights(hash: &mut Sha256, path: &Path) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    head(hash, &name, size);
    let sample = size.min(SAMPLE_BYTES);
    for start in [0, size - sample] {
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        (&mut file).take(sample).read_to_end(&mut bytes)?;
        hash.update(&bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of the rule, written out.
    #[test]
    fn a_folder_is_hashed_by_the_rule() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
        write("config.json", b"{}");
        write("b.safetensors", b"second");
        write("a.safetensors", b"first");
        write("notes.txt", b"not part of it");
        let mut expected = Sha256::new();
        expected.update(b"config.json\0\x02\0\0\0\0\0\0\0{}");
        expected.update(b"a.safetensors\0\x05\0\0\0\0\0\0\0firstfirst");
        expected.update(b"b.safetensors\0\x06\0\0\0\0\0\0\0secondsecond");
        let expected: [u8; 32] = expected.finalize().into();
        assert_eq!(model_hash(folder.path()).unwrap(), expected);
    }

    #[test]
    fn of_a_long_file_only_both_ends_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let mut bytes = vec![7; (3 << 20) + 5];
        fs::write(&path, &bytes).unwrap();
        let hash = model_hash(&path).unwrap();
        bytes[1 << 21] = 8;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(model_hash(&path).unwrap(), hash);
        *bytes.last_mut().unwrap() = 8;
        fs::write(&path, &bytes).unwrap();
        assert_ne!(model_hash(&path).unwrap(), hash);
    }
}
