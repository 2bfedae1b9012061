//! Reflection, of what users may call: the workers' protocol is not part of it.

use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic_reflection::server::{
    Builder, Error,
    v1::{ServerReflection, ServerReflectionServer},
    v1alpha::{
        ServerReflection as AlphaReflection, ServerReflectionServer as AlphaReflectionServer,
    },
};

use crate::wire::DESCRIPTORS;

/// Package of the workers' protocol.
const INTERNAL_PACKAGE: &str = "dopd.worker.v1";

/// Both versions that tools ask for.
pub(super) fn servers() -> Result<
    (
        ServerReflectionServer<impl ServerReflection>,
        AlphaReflectionServer<impl AlphaReflection>,
    ),
    Error,
> {
    Ok((builder()?.build_v1()?, builder()?.build_v1alpha()?))
}

fn builder<'a>() -> Result<Builder<'a>, Error> {
    let mut ours = FileDescriptorSet::decode(DESCRIPTORS).map_err(Error::DecodeError)?;
    ours.file.retain(|file| file.package() != INTERNAL_PACKAGE);
    Ok(Builder::configure()
        .register_file_descriptor_set(ours)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET))
}
