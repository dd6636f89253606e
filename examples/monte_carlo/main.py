"""Pi by throwing darts: many jobs that can run at the same time, and one that sums them up."""

import json
import random

from pairio.sdk import App, BaseModel, Field, InputFile, OutputFile, ProcessorBase

app = App("monte_carlo", description="Pi, estimated by many small jobs")


class ThrowContext(BaseModel):
    """What throw takes and gives."""

    seed: int = Field(description="The seed: the same seed gives the same darts")
    points: int = Field(description="How many darts", default=100_000)
    counts: OutputFile = Field(description="How many darts, and how many of them within the circle")


class Throw(ProcessorBase):
    """Throws darts at a square, and counts those within the circle."""

    name = "throw"
    description = "Throws darts"
    label = "Throw"
    image = ""
    executable = "main.py"

    @staticmethod
    def run(context: ThrowContext) -> None:
        """Throw and count."""
        if context.points < 1:
            raise ValueError(f"points is {context.points}: at least one dart must be thrown")
        darts = random.Random(context.seed)
        inside = sum(darts.random() ** 2 + darts.random() ** 2 < 1 for _ in range(context.points))
        print(f"{inside} of {context.points} within")
        with open("counts.json", "w") as file:
            json.dump({"points": context.points, "inside": inside}, file)
        context.counts.upload("counts.json")


class EstimateContext(BaseModel):
    """What estimate takes and gives."""

    counts: list[InputFile] = Field(description="What throws counted")
    estimate: OutputFile = Field(description="Pi")


class Estimate(ProcessorBase):
    """Sums counts up, and estimates pi from them."""

    name = "estimate"
    description = "Estimates pi"
    label = "Estimate"
    image = ""
    executable = "main.py"

    @staticmethod
    def run(context: EstimateContext) -> None:
        """Sum up and write the estimate."""
        points = inside = 0
        for number, each in enumerate(context.counts):
            each.download(f"{number}.json")
            with open(f"{number}.json") as file:
                counted = json.load(file)
            points += counted["points"]
            inside += counted["inside"]
        with open("estimate.txt", "w") as file:
            file.write(f"{4 * inside / points:.4f}")
        context.estimate.upload("estimate.txt")


app.add_processor(Throw)
app.add_processor(Estimate)

if __name__ == "__main__":
    app.run()
