//! Generated protobuf types. What they mean stands in `proto/`; conversions to core types are in
//! the rooms that use them.

#[expect(
    missing_docs,
    clippy::pedantic,
    clippy::allow_attributes,
    reason = "generated code"
)]
/// `dopd.v1`: what users call.
pub mod v1 {
    include!("gen/dopd.v1.rs");
}

#[expect(
    missing_docs,
    clippy::pedantic,
    clippy::allow_attributes,
    clippy::large_enum_variant,
    reason = "generated code"
)]
/// `dopd.worker.v1`: router and workers only.
pub mod worker {
    include!("gen/dopd.worker.v1.rs");
}

/// The `FileDescriptorSet` of all services, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!("gen/descriptors.bin");
