//! Generates client and server of the service from this description, which needs no `protoc`.

use tonic_build::manual::{Builder, Method, Service};

fn main() {
    let method = |name: &str, route: &str, output: &str| {
        Method::builder()
            .name(name)
            .route_name(route)
            .input_type("crate::PayRequest")
            .output_type(output)
            .codec_path("tonic_prost::ProstCodec")
    };
    let payments = Service::builder()
        .name("Payments")
        .package("nevertwice.example.v1")
        .method(method("pay", "Pay", "crate::Paid").build())
        .method(method("pay_in_steps", "PayInSteps", "crate::Step").server_streaming().build())
        .build();
    Builder::new().compile(&[payments]);
}
