//! Hidden units of LSTM, GRU and RNN: with initial states, peepholes and the other layout.

use super::{case, check};

/// A layer of 4 units with `gates` gates, read by a product. `more` are inputs from the bias on.
fn layer(op: &str, gates: usize, more: &str, lines: &str) -> String {
    format!(
        "x: f32[5, 2, 3]
         w = normal[1, {rows}, 3]
         r = normal[1, {rows}, 4]
         b = normal[1, {biases}]
         {lines}
         y, last = {op}(x, w, r, {more}, hidden_size=4)
         one = ints[1]
         states = Squeeze(y, one)
         v = normal[4, 2]
         out = MatMul(states, v)
         first = MatMul(last, v)",
        rows = gates * 4,
        biases = gates * 8,
    )
}

#[test]
fn initial_states_are_cut_with_the_units() {
    let constant = "h = normal[1, 2, 4]\nc = normal[1, 2, 4]";
    let computed = "
        z: f32[1, 2, 5]
        hw = normal[5, 4]
        cw = normal[5, 4]
        h = MatMul(z, hw)
        cs = MatMul(z, cw)
        c = Sigmoid(cs)";
    for lines in [constant, computed] {
        let lstm = format!("{lines}\np = normal[1, 12]");
        let without_c = lines.split_once("cw = ").map_or_else(
            || "h = normal[1, 2, 4]".to_string(),
            |(first, _)| format!("{first}h = MatMul(z, hw)"),
        );
        for (text, what) in [
            (layer("LSTM", 4, "b, , h, c, p", &lstm), "peepholes"),
            (layer("LSTM", 4, "b, , h, c, , clip=0.6", lines), "clip"),
            (layer("LSTM", 4, "b, , h, c, p, input_forget=1", &lstm), "coupled"),
            (layer("GRU", 3, "b, , h", &without_c), "GRU"),
            (layer("GRU", 3, "b, , h, linear_before_reset=1", &without_c), "reset after"),
            (layer("RNN", 1, "b, , h, activations=Sigmoid", &without_c), "RNN"),
            (layer("RNN", 1, ", , h, direction=reverse", &without_c), "reverse"),
        ] {
            assert_eq!(check(what, &case(17, &text)), ["recurrent 4"], "{text}");
        }
    }
}

#[test]
fn a_state_that_the_caller_keeps_is_not_cut() {
    let text = layer("LSTM", 4, "b, , h, c", "h: f32[1, 2, 4]\nc = normal[1, 2, 4]");
    assert_eq!(check("state", &case(17, &text)), Vec::<String>::new());
}

#[test]
fn directions_and_layers_keep_their_order() {
    let text = "
        x: f32[2, 5, 3]
        w = normal[2, 16, 3]
        r = normal[2, 16, 4]
        y = LSTM(x, w, r, hidden_size=4, direction=bidirectional, layout=1)
        both = ints[0, 0, 8]
        t = Reshape(y, both)
        w2 = normal[1, 18, 8]
        r2 = normal[1, 18, 6]
        b2 = normal[1, 36]
        , z = GRU(t, w2, r2, b2, hidden_size=6, layout=1)
        flat = ints[0, -1]
        u = Reshape(z, flat)
        v = normal[6, 2]
        out = MatMul(u, v)";
    assert_eq!(check("stack", &case(17, text)), ["recurrent 4", "recurrent 6"]);
}
