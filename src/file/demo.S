/* The demo files, byte for byte, in the read-only part of the program. ELF, any processor. */
    .section .rodata.nib_demo, "a", %progbits

    .macro demo_file name, path
    .globl nib_demo_\name\()_begin
    .hidden nib_demo_\name\()_begin
    .type nib_demo_\name\()_begin, %object
    .globl nib_demo_\name\()_end
    .hidden nib_demo_\name\()_end
    .type nib_demo_\name\()_end, %object
    .balign 64
nib_demo_\name\()_begin:
    .incbin "\path"
nib_demo_\name\()_end:
    .size nib_demo_\name\()_begin, . - nib_demo_\name\()_begin
    .byte 0
    .endm

    demo_file model, "demo/nibble-demo.bf16.gguf"
    demo_file text, "demo/eval.txt"
    demo_file choice, "demo/choice.jsonl"
    demo_file prompts, "demo/prompts.json"

    .section .note.GNU-stack, "", %progbits
