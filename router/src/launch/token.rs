//! The join token: what a worker must show to attach. From a file, or minted for one run and
//! removed at its end.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use super::console::Failure;

/// Random bytes of a minted token.
const TOKEN_BYTES: usize = 32;

/// Longest token in a file; what is longer is probably not a token.
const TOKEN_BYTES_MAX: u64 = 4_096;

/// A token in a file that only its owner can read.
pub(super) struct JoinToken {
    pub(super) token: String,
    pub(super) file: PathBuf,
    /// What this run made and removes: the file, or the folder around it.
    made: Option<PathBuf>,
}

impl JoinToken {
    /// The token of `file` if that exists; else a new one, written there or to a private temporary
    /// folder.
    pub(super) fn prepare(file: Option<&Path>) -> Result<Self, Failure> {
        let result = match file {
            Some(file) if file.exists() => return Self::read(file),
            Some(file) => Self::mint(file.to_owned(), file.to_owned()),
            None => {
                private_folder().and_then(|folder| Self::mint(folder.join("join-token"), folder))
            }
        };
        result.map_err(|error| {
            let place = file.unwrap_or(Path::new("a temporary folder"));
            Failure::new(format!(
                "cannot write the join token to {}: {error}",
                place.display()
            ))
        })
    }

    fn read(file: &Path) -> Result<Self, Failure> {
        let shown = file.display();
        let failed = |problem: &dyn std::fmt::Display| {
            Failure::usage(format!("cannot use the join token in {shown}: {problem}"))
        };
        let facts = fs::metadata(file).map_err(|error| failed(&error))?;
        if facts.len() > TOKEN_BYTES_MAX {
            return Err(failed(&format!(
                "it has {} bytes, the limit is {TOKEN_BYTES_MAX}",
                facts.len()
            )));
        }
        let text = fs::read_to_string(file).map_err(|error| failed(&error))?;
        let token = text.trim().to_owned();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(failed(&"it must be one line of printable ASCII"));
        }
        if facts.permissions().mode() & 0o077 != 0 {
            tracing::warn!("others can read the join token in {shown}; chmod 600 it");
        }
        Ok(Self {
            token,
            file: file.to_owned(),
            made: None,
        })
    }

    fn mint(file: PathBuf, made: PathBuf) -> io::Result<Self> {
        let token = random_hex(TOKEN_BYTES)?;
        let mut out = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&file)?;
        out.write_all(token.as_bytes())?;
        out.write_all(b"\n")?;
        Ok(Self {
            token,
            file,
            made: Some(made),
        })
    }
}

impl Drop for JoinToken {
    fn drop(&mut self) {
        let Some(made) = &self.made else { return };
        let removed = fs::remove_file(&self.file);
        let removed = if *made == self.file {
            removed
        } else {
            removed.and(fs::remove_dir(made))
        };
        if let Err(error) = removed {
            tracing::warn!(
                "cannot remove the join token at {}: {error}",
                made.display()
            );
        }
    }
}

/// A new folder that only this user can enter.
fn private_folder() -> io::Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("dopd-{}", random_hex(8)?));
    DirBuilder::new().mode(0o700).create(&folder)?;
    Ok(folder)
}

fn random_hex(bytes: usize) -> io::Result<String> {
    let mut random = vec![0_u8; bytes];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    Ok(random
        .iter()
        .fold(String::with_capacity(2 * bytes), |mut hex, byte| {
            for nibble in [byte >> 4, byte & 15] {
                hex.extend(char::from_digit(u32::from(nibble), 16));
            }
            hex
        }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_minted_token_is_private_and_goes_with_the_run() {
        let token = JoinToken::prepare(None).unwrap();
        let (file, folder) = (token.file.clone(), token.file.parent().unwrap().to_owned());
        assert_eq!((mode(&file), mode(&folder)), (0o600, 0o700));
        assert_eq!(fs::read_to_string(&file).unwrap().trim(), token.token);
        assert_eq!(token.token.len(), 64);
        drop(token);
        assert!(!folder.exists());
    }

    #[test]
    fn a_token_file_of_the_user_is_read_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        fs::write(&file, "abc\n").unwrap();
        let token = JoinToken::prepare(Some(&file)).unwrap();
        assert_eq!(token.token, "abc");
        drop(token);
        assert!(file.exists());
    }

    #[test]
    fn a_token_file_that_is_missing_is_made_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let token = JoinToken::prepare(Some(&file)).unwrap();
        assert_eq!(mode(&file), 0o600);
        drop(token);
        assert!(!file.exists());
        assert!(folder.path().exists());
    }

    #[test]
    fn a_file_that_is_no_token_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        for text in ["", " \n", "two words", "two\nlines", "ünicode"] {
            fs::write(&file, text).unwrap();
            assert!(JoinToken::prepare(Some(&file)).is_err(), "{text:?}");
        }
    }
}
