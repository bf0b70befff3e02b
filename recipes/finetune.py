"""Fine-tune: a teacher alone, for any later recipe.

Paper      Devlin et al. 2018 (arXiv:1810.04805): a classifier on the pooled first
           token, all parameters trained, dropout as in the model's configuration.
Command    bitflax run finetune --out runs/teacher --set task=glue/sst2
Result     runs/teacher/0-teacher/params, a Hugging Face folder, which any other recipe
           takes as its teacher.
"""

import bitflax as bf


def recipe(
    *,
    task: str = "icd10cm",
    data_dir: str | None = None,
    text: str | tuple[str, str] | None = None,
    label: str | None = None,
    dev: str | None = None,
    pretrained: str = "minilm",
    epochs: int | None = None,
    lr: float = 1e-4,
    batch_size: int = 32,
    max_length: int = 128,
    limit: int | None = None,
    seed: int = 0,
) -> bf.Recipe:
    return bf.Recipe(
        data=bf.Data(
            task=task,
            data_dir=data_dir,
            text=text,
            label=label,
            dev=dev,
            max_length=max_length,
            batch_size=batch_size,
            limit=limit,
            seed=seed,
        ),
        teacher=bf.Teacher(pretrained=pretrained, epochs=epochs, optim=bf.Optim(lr=lr)),
        seed=seed,
    )
