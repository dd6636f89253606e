"""The first app: greet, write a greeting, count the characters of a file."""

import json

from pairio.sdk import App, BaseModel, Field, InputFile, OutputFile, ProcessorBase

app = App("hello_world", description="Says hello, writes it to a file, counts characters")


class HelloWorld1Context(BaseModel):
    """What hello_world_1 takes."""

    name: str = Field(description="Whom to greet", default="world")


class HelloWorld1(ProcessorBase):
    """Prints a greeting."""

    name = "hello_world_1"
    description = "Prints a greeting to the console"
    label = "Hello world 1"
    image = "magland/pairio-hello-world:0.1.0"
    executable = "/app/main.py"

    @staticmethod
    def run(context: HelloWorld1Context) -> None:
        """Print the greeting."""
        print(f"Hello, {context.name}!")


class HelloWorld2Context(BaseModel):
    """What hello_world_2 takes and gives."""

    output: OutputFile = Field(description="The greeting")
    name: str = Field(description="Whom to greet", default="world")


class HelloWorld2(ProcessorBase):
    """Writes a greeting."""

    name = "hello_world_2"
    description = "Writes a greeting to a file"
    label = "Hello world 2"
    image = "magland/pairio-hello-world:0.1.0"
    executable = "/app/main.py"

    @staticmethod
    def run(context: HelloWorld2Context) -> None:
        """Write the greeting."""
        with open("output.txt", "w") as file:
            file.write(f"Hello, {context.name}!")
        context.output.upload("output.txt")


class CountCharactersContext(BaseModel):
    """What count_characters takes and gives."""

    input: InputFile = Field(description="The file to count")
    output: OutputFile = Field(description="The count, as JSON")
    include_whitespace: bool = Field(description="Whether blanks count", default=True)


class CountCharacters(ProcessorBase):
    """Counts characters."""

    name = "count_characters"
    description = "Counts the characters of a text file"
    label = "Count characters"
    image = "magland/pairio-hello-world:0.1.0"
    executable = "/app/main.py"

    @staticmethod
    def run(context: CountCharactersContext) -> None:
        """Count and write the number."""
        context.input.download("input.txt")
        with open("input.txt") as file:
            text = file.read()
        if not context.include_whitespace:
            text = "".join(text.split())
        print(f"{len(text)} characters")
        with open("output.json", "w") as file:
            json.dump({"count": len(text)}, file)
        context.output.upload("output.json")


app.add_processor(HelloWorld1)
app.add_processor(HelloWorld2)
app.add_processor(CountCharacters)

if __name__ == "__main__":
    app.run()
