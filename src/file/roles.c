/* What part a tensor plays, from its GGUF name alone, whether or not nibble runs the architecture.
 *
 *   blk.N.STEM.SUFFIX  or  STEM.SUFFIX      STEM -> role by the table; SUFFIX .bias -> "bias"
 *
 * Stems that end in an asterisk match any continuation; the first row that fits wins. */
#include "nibble/gguf.h"

#include <string.h>

static const struct {
    const char *stem, *role;
} stems[] = {
    {"token_embd_norm", "norm"},
    {"token_embd", "embedding"},
    {"per_layer_token_embd", "embedding"},
    {"position_embd", "embedding"},
    {"token_types", "embedding"},
    {"output", "output"},
    {"output_norm", "norm"},
    {"rope_freqs", "rope_freqs"},
    {"rope_factors_*", "rope_freqs"},

    {"attn_q_norm", "qk_norm"},
    {"attn_k_norm", "qk_norm"},
    {"attn_q_a_norm", "norm"},
    {"attn_kv_a_norm", "norm"},
    {"attn_sub_norm", "norm"},
    {"attn_norm*", "norm"},
    {"attn_post_norm", "norm"},
    {"attn_output_norm", "norm"},
    {"post_attention_norm", "norm"},
    {"post_ffw_norm*", "norm"},
    {"pre_ffw_norm*", "norm"},
    {"ffn_norm*", "norm"},
    {"ffn_sub_norm", "norm"},
    {"ffn_post_norm", "norm"},
    {"layer_output_norm", "norm"},
    {"post_norm", "norm"},

    {"attn_q", "attn_q"},
    {"attn_k", "attn_k"},
    {"attn_v", "attn_v"},
    {"attn_qkv", "attn_qkv"},
    {"attn_output", "attn_output"},
    {"attn_gate", "attn_gate"},
    {"attn_sinks", "attn_sinks"},
    {"attn_q_a", "attn_q_a"},
    {"attn_q_b", "attn_q_b"},
    {"attn_kv_a_mqa", "attn_kv_a"},
    {"attn_kv_a", "attn_kv_a"},
    {"attn_kv_b", "attn_kv_b"},
    {"attn_k_b", "attn_k_b"},
    {"attn_v_b", "attn_v_b"},

    {"ffn_gate_inp*", "router"},
    {"exp_probs_b", "router"},
    {"ffn_gate", "ffn_gate"},
    {"ffn_up", "ffn_up"},
    {"ffn_down", "ffn_down"},
    {"ffn_gate_exps", "experts_gate"},
    {"ffn_up_exps", "experts_up"},
    {"ffn_down_exps", "experts_down"},
    {"ffn_gate_up_exps", "experts_gate_up"},
    {"ffn_gate_shexp", "shared_gate"},
    {"ffn_up_shexp", "shared_up"},
    {"ffn_down_shexp", "shared_down"},

    {"ssm_in", "ssm_in"},
    {"ssm_out", "ssm_out"},
    {"ssm_conv1d", "ssm_conv1d"},
    {"ssm_norm", "norm"},
    {"ssm_a", "ssm_a"},
    {"ssm_dt", "ssm_dt"},
    {"ssm_d", "ssm_d"},
    {"ssm_x", "ssm_x"},
    {"ssm_ba", "ssm_ba"},
    {"ssm_alpha", "ssm_alpha"},
    {"ssm_beta", "ssm_beta"},

    {"nextn.*", "nextn"},
};

/* "blk.12.attn_q.weight" -> layer 12 and a pointer to "attn_q.weight"; name itself and -1 outside blocks. */
static const char *skip_block(const char *name, int *layer) {
    *layer = -1;
    if (strncmp(name, "blk.", 4) != 0) return name;
    const char *p = name + 4;
    int number = 0;
    for (; *p >= '0' && *p <= '9'; p++) {
        if (number > 99999999) return name;
        number = number * 10 + (*p - '0');
    }
    if (p == name + 4 || *p != '.' || p[1] == '\0') return name;
    *layer = number;
    return p + 1;
}

static bool ends_with(const char *text, size_t n, const char *end) {
    const size_t m = strlen(end);
    return n > m && memcmp(text + n - m, end, m) == 0;
}

const char *nib_tensor_role(const char *name, int *layer) {
    int number;
    const char *stem = skip_block(name, &number);
    size_t n = strlen(stem);
    if (layer) *layer = number;
    bool is_bias = false;
    if (ends_with(stem, n, ".input_scale") || ends_with(stem, n, ".scale")) return "scale";
    if (ends_with(stem, n, ".weight")) {
        n -= strlen(".weight");
    } else if (ends_with(stem, n, ".bias")) {
        n -= strlen(".bias");
        is_bias = true;
    }
    for (size_t i = 0; i < sizeof stems / sizeof *stems; i++) {
        const size_t m = strlen(stems[i].stem);
        const bool open = stems[i].stem[m - 1] == '*';
        const bool fits = open ? n >= m - 1 && memcmp(stem, stems[i].stem, m - 1) == 0
                               : n == m && memcmp(stem, stems[i].stem, m) == 0;
        if (!fits) continue;
        /* the step bias of state-space layers and the router's correction exist as biases only */
        const bool only_bias = strcmp(stems[i].role, "ssm_dt") == 0 || strcmp(stems[i].stem, "exp_probs_b") == 0;
        return is_bias && !only_bias ? "bias" : stems[i].role;
    }
    return "other";
}
