//! Over the table: every architecture, with its defaults and broken options.

use attar_graph::{StoredTensor, validate};

use super::*;

fn made(architecture: &str, options: &[(&str, &str)]) -> Result<NewModel, String> {
    let given: Vec<(String, String)> =
        options.iter().map(|&(key, value)| (key.into(), value.into())).collect();
    new_model(architecture, &given).map_err(|error| error.to_string())
}

fn parameters(model: &Model) -> usize {
    let count = |stored: &StoredTensor| stored.tensor.element_count();
    model.graph.initializers.values().map(count).sum()
}

#[test]
fn every_architecture_is_a_valid_graph_and_the_same_seed_gives_the_same() {
    for architecture in ARCHITECTURES {
        let has_words = architecture.options.iter().any(|option| option.key == "vocabulary");
        let small = if has_words { vec![("vocabulary", "100")] } else { Vec::new() };
        let one = made(architecture.name, &small).unwrap();
        validate(&one.model.graph).unwrap();
        assert!(!one.model.graph.outputs.is_empty(), "{}", architecture.name);
        assert_eq!(one.model, made(architecture.name, &small).unwrap().model);
        let other = [small, vec![("seed", "1")]].concat();
        let other = made(architecture.name, &other).unwrap().model;
        assert_ne!(one.model, other, "{}", architecture.name);
        assert_eq!(parameters(&one.model), parameters(&other));
    }
}

#[test]
fn the_table_is_in_order_of_name() {
    assert!(ARCHITECTURES.is_sorted_by_key(|architecture| architecture.name));
}

#[test]
fn what_is_wrong_is_named_with_what_would_be_right() {
    for (architecture, options, expected) in [
        ("bart", &[][..], "no new model is called `bart`; there are bert, cnn, "),
        ("bert", &[("width", "2")], "bert has no option `width`; it has layers, hidden, "),
        ("bert", &[("hidden", "100")], "`hidden` of bert is `100`, expected a multiple of the 12"),
        ("resnet", &[("depth", "19")], "`depth` of resnet is `19`, expected 18, or 6n + 2: "),
        ("bert", &[("length", "600")], "`length` of bert is `600`, expected no more than the 512"),
        ("bert", &[("head", "x")], "`head` of bert is `x`, expected embedding, classifier, tokens"),
        ("mlp", &[("hidden", "3,,4")], "`hidden` of mlp is ``, expected a whole number from 1"),
        ("cnn", &[("size", "2")], "`widths` of cnn is `32,64,128`, expected one stage more than"),
        ("lenet", &[("std", "0")], "`std` of lenet is `0`, expected above 0"),
        ("lenet", &[("mean", "1,2")], "`mean` of lenet is `1,2`, expected a number, or 1"),
        ("lstm", &[("dropout", "1")], "`dropout` of lstm is `1`, expected a number from 0 to"),
        ("lstm", &[("opset", "7")], "opset 7 cannot be written, 17 to 21 can"),
        ("mlp", &[("hidden", "16777216")], "`hidden.0.weight` of shape [16777216, 784] would "),
    ] {
        let error = made(architecture, options).unwrap_err();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn sizes_are_those_of_the_papers() {
    // LeNet-5: 61 706 of the usual form.
    assert_eq!(parameters(&made("lenet", &[]).unwrap().model), 61_706);
    // torchvision's MobileNetV2: 3 504 872 weights and 34 112 running statistics, and two limits.
    let options = [("size", "224"), ("classes", "1000")];
    let model = made("mobilenet_v2", &options).unwrap().model;
    assert_eq!(parameters(&model), 3_504_872 + 34_112 + 2);
    // He et al.: 0.27 M, and 0.85 M for 56 layers, running statistics not counted. Theirs had
    // shortcuts without filters, of which there are two.
    let resnet = |depth| {
        let model = made("resnet", &[("depth", depth)]).unwrap().model;
        let weights = model.graph.initializers.iter().filter(|(name, _)| !name.contains("running"));
        weights.map(|(_, stored)| stored.tensor.element_count()).sum::<usize>()
    };
    assert_eq!((resnet("20"), resnet("56")), (272_474, 855_770));
}
