"""Ask the hub at HF_ENDPOINT with every real client, and print what came as JSON.

It runs in a process of its own: the clients read their environment when they are imported. The
arguments are JSON: the sources of the models, and of the data sets with the names of their splits.
"""

import json
import sys

import datasets
import transformers
from huggingface_hub import HfApi, snapshot_download
from lm_eval.tasks import TaskManager, get_task_dict

CLASSES = {
    "roberta": transformers.AutoModelForMaskedLM,
    "t5": transformers.AutoModelForSeq2SeqLM,
    "llama": transformers.AutoModelForCausalLM,
}


def main() -> None:
    asked = json.loads(sys.argv[1])
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    found: dict[str, object] = {"models": {}, "datasets": {}}
    for source in asked["models"]:
        pin = {"revision": source["revision"]}
        config = transformers.AutoConfig.from_pretrained(source["id"], **pin)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source["id"], **pin)
        model = CLASSES[config.model_type].from_pretrained(source["id"], **pin)
        total = sum(float(weight.double().sum()) for weight in model.parameters())
        found["models"][source["id"]] = [total, tokenizer("the kind cat")["input_ids"]]
    for source in asked["datasets"]:
        tables = datasets.load_dataset(
            source["id"], source.get("config"), revision=source["revision"]
        )
        rows = {split: table.to_list() for split, table in tables.items()}
        found["datasets"][f"{source['id']}/{source.get('config', '')}"] = rows
    task = get_task_dict(["mmlu_abstract_algebra"], TaskManager())["mmlu_abstract_algebra"]
    found["mmlu"] = [task.doc_to_text(doc) for doc in task.test_docs()]
    glue = asked["datasets"][0]
    folder = snapshot_download(glue["id"], repo_type="dataset", revision=glue["revision"])
    found["snapshot"] = folder
    found["sha"] = HfApi().dataset_info(glue["id"], revision=glue["revision"]).sha
    print(json.dumps(found))


if __name__ == "__main__":
    main()
