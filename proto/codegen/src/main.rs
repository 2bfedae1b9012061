//! Turns a `FileDescriptorSet` (from grpcio-tools' protoc) into the committed Rust code.
//!
//! Usage: `dopd-proto-codegen DESCRIPTOR_SET OUT_DIR`. Called by `make proto` only: a build needs
//! no protoc.

use std::{error::Error, fs, path::PathBuf};

use prost::Message;
use prost_types::FileDescriptorSet;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(descriptors), Some(out)) = (args.next(), args.next()) else {
        return Err("usage: dopd-proto-codegen DESCRIPTOR_SET OUT_DIR".into());
    };
    let bytes = fs::read(&descriptors)?;
    fs::create_dir_all(&out)?;
    fs::write(out.join("descriptors.bin"), &bytes)?;
    tonic_prost_build::configure()
        .out_dir(&out)
        .emit_rerun_if_changed(false)
        .compile_fds(FileDescriptorSet::decode(bytes.as_slice())?)?;
    Ok(())
}
