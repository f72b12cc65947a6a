"""Teacher on OpenAI-compatible servers, such as vLLM's."""

from collections.abc import Sequence

from .openai_messages import answer_text, content
from .openai_servers import OpenAIServers
from .teacher import Answer, Teacher, Turn


class OpenAITeacher(OpenAIServers, Teacher):
    """Ask a model on one or several servers; arguments as of OpenAIServers.

    Example:
        teacher = OpenAITeacher("Qwen/Qwen2.5-VL-7B-Instruct", ["http://localhost:8000/v1"])
    """

    async def ask(
        self, turns: Sequence[Turn], max_tokens: int, schema: dict | None = None
    ) -> Answer:
        """Ask until a server answers; Unanswered after `retries` failures."""
        body = self._body(turns, max_tokens, schema)
        response, tries = await self.complete(body, self.estimate(turns), max_tokens)
        text, complete = answer_text(response)
        return Answer(self.redact(text), complete, tries)

    def _body(self, turns: Sequence[Turn], max_tokens: int, schema: dict | None) -> dict:
        """Build the body of a request."""
        body = {
            "model": self.model,
            "messages": [{"role": role, "content": content(parts)} for role, parts in turns],
            "max_completion_tokens": max_tokens,
            "temperature": self.temperature,
        }
        # Servers hold the answer to the schema while they decode.
        if schema:
            wanted = {"name": "chain", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": wanted}
        return body
