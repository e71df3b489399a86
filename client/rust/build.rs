//! Makes the stubs from the .proto files, without protoc.

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../protos");
    let files = ["device", "memory", "model"].map(|name| format!("aclserve/v1/{name}.proto"));
    println!("cargo:rerun-if-changed={}", root.join("aclserve/v1").display());
    let descriptors = protox::compile(files, [&root])?;
    tonic_prost_build::configure().build_server(false).bytes(".aclserve.v1.Tensor.data").compile_fds(descriptors)?;
    Ok(())
}
