//! Streams the held-out digits to a server, and prints how many it names right: `digits [HOST:PORT]`

mod npy;

use std::env;
use std::error::Error;
use std::path::PathBuf;

use aclserve_client::v1::{StreamConfig, Tensor};
use aclserve_client::{Client, StreamOptions};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let variable = |name| env::var(name).ok();
    let address = env::args().nth(1).or(variable("ACLSERVE_ADDRESS")).unwrap_or("127.0.0.1:8001".into());
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/digits");
    let folder = PathBuf::from(variable("ACLSERVE_DIGITS").unwrap_or(here.into()));
    let images = npy::read(&folder.join("heldout_images.npy"))?;
    let labels = npy::read(&folder.join("heldout_labels.npy"))?;

    let client = Client::new(&address)?;
    let config = StreamConfig { model: "digits".into(), ..Default::default() };
    let (sender, mut results) = client.stream(config, StreamOptions { resume: true, ..Default::default() }).await?;
    let sending = tokio::spawn(async move {
        for image in images.chunks_exact(64) {
            let pixels: Vec<f32> = image.iter().copied().map(f32::from).collect();
            sender.send([Tensor::of("image", &[1, 8, 8], &pixels)]).await?;
        }
        Ok::<_, aclserve_client::Error>(())
    });
    let (mut right, mut answers) = (0, 0);
    while let Some(result) = results.next().await {
        let result = result?;
        let label = result.output("label")?.values::<i64>()?[0];
        right += i32::from(label == i64::from(labels[result.id.parse::<usize>()?]));
        answers += 1;
    }
    sending.await??;
    println!("accuracy    {:.1}% of {answers} answers", 100.0 * f64::from(right) / f64::from(answers));
    Ok(())
}
