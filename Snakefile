# The whole reproduction: snakemake --cores all   (paper scale)
#                         snakemake --cores all --config scale=smoke
# One table or task:      snakemake --cores all table1     snakemake --cores all mrpc
# Some runs:              snakemake --cores all --config only=mrpc,lora-sp,seed-0
# What it will take:      snakemake --cores all plan --config gpu=h100-80gb


include: "workflow/rules/common.smk"


container: CONTAINER


rule all:
    input:
        f"{REPORT}/report.html",


include: "workflow/rules/prepare.smk"
include: "workflow/rules/plan.smk"
include: "workflow/rules/budget.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/profile.smk"
include: "workflow/rules/simulate.smk"
include: "workflow/rules/audit.smk"
include: "workflow/rules/report.smk"


report: "workflow/report/workflow.rst"
