//! The wire contract of Parallax, generated from the `.proto` files beside this crate.
//!
//! It holds no logic. The packages `parallax.confidence` to `parallax.gateway` are fixed: agents and clients
//! that exist today speak them, and `tests/golden.rs` pins their bytes. Whatever is new goes into a versioned
//! package (`parallax.dataplane.v1`, `parallax.controlplane.v1`), never into those.
#![allow(clippy::large_enum_variant, clippy::doc_markdown, unreachable_pub, missing_docs)]

/// Served by agents, and by the data plane in their name.
pub mod confidence {
    tonic::include_proto!("parallax.confidence");
}
/// Served by the control plane to agents.
pub mod registry {
    tonic::include_proto!("parallax.registry");
}
/// Served by the control plane to clients.
pub mod patterns {
    tonic::include_proto!("parallax.patterns");
}
/// Served by the control plane to clients.
pub mod executions {
    tonic::include_proto!("parallax.executions");
}
/// Served by the control plane to clients.
pub mod coordinator {
    tonic::include_proto!("parallax.coordinator");
}
/// Served by the control plane to agents behind NAT.
pub mod gateway {
    tonic::include_proto!("parallax.gateway");
}
/// Served by data-plane nodes to the control plane.
pub mod dataplane {
    pub mod v1 {
        tonic::include_proto!("parallax.dataplane.v1");
    }
}
/// Served by the control plane to data-plane nodes.
pub mod controlplane {
    pub mod v1 {
        tonic::include_proto!("parallax.controlplane.v1");
    }
}

/// The encoded `FileDescriptorSet` of all files, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
