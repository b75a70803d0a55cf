"""Unmodified clients of code interpreter sessions: langchain's tools and the MCP SDK. Prints what they saw as JSON.

It runs in an environment of its own (requirements-interpreter.txt): `langchain PYTHON_POOL SHELL_POOL` with the token in
`TOKEN`, or `mcp ENDPOINT KEY`.
"""

import asyncio
import io
import json
import os
import sys


def langchain(python, shell):
    from langchain_azure_dynamic_sessions import SessionsBashTool, SessionsPythonREPLTool

    token = os.environ["TOKEN"]
    seen = {}
    with SessionsPythonREPLTool(pool_management_endpoint=python, access_token_provider=lambda: token) as tool:
        seen["answer"] = json.loads(tool.invoke("```python\n6 * 7\n```"))
        tool.upload_file(data=io.BytesIO(b"hello"), remote_file_path="hello.txt")
        seen["files"] = [[file.filename, file.size_in_bytes] for file in tool.list_files()]
        seen["content"] = tool.download_file(remote_file_path="hello.txt").read().decode()
        plot = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
        seen["image"] = json.loads(tool.invoke(plot))["result"]
    with SessionsBashTool(pool_management_endpoint=shell, access_token_provider=lambda: token) as tool:
        seen["bash"] = json.loads(tool.invoke("echo hello"))
        file = tool.upload_file(data=io.BytesIO(b"abc"), remote_file_path="b.txt")
        seen["bash_file"] = [file.filename, file.size_in_bytes]
        seen["bash_content"] = tool.download_file(remote_file_path="b.txt").read().decode()
    return seen


async def mcp(endpoint, key):
    from mcp import ClientSession
    from mcp.client.streamable_http import create_mcp_http_client, streamable_http_client

    async def note(answer):
        if answer.status_code >= 300:
            await answer.aread()
            print(answer.status_code, answer.text, file=sys.stderr)

    http = create_mcp_http_client(headers={"x-ms-apikey": key})
    http.event_hooks = {"response": [note]}
    async with http, streamable_http_client(endpoint, http_client=http) as streams, ClientSession(*streams[:2]) as session:
        begun = await session.initialize()
        tools = await session.list_tools()
        launched = await session.call_tool("launchShell", {})
        environment = {"environmentId": launched.structured_content["environmentId"]}
        code = {**environment, "pythonCode": "print('hello')\n42"}
        python = await session.call_tool("runPythonCodeInRemoteEnvironment", code)
        command = {**environment, "shellCommand": "echo hello"}
        shell = await session.call_tool("runShellCommandInRemoteEnvironment", command)
        unknown = await session.call_tool(
            "runShellCommandInRemoteEnvironment", {"environmentId": "another-one", "shellCommand": "id"}
        )
        return {
            "server": begun.server_info.name,
            "tools": [tool.name for tool in tools.tools],
            "python": python.structured_content,
            "shell": shell.structured_content,
            "unknown_is_error": unknown.is_error,
        }


def e2b_custom():
    """What `e2b-code-interpreter` sees of a pool of custom containers."""
    from e2b import SandboxException
    from e2b_code_interpreter import Sandbox

    seen = {}
    with Sandbox.create(timeout=600) as box:
        command = box.commands.run("echo out; echo err >&2")
        seen["command"] = [command.stdout, command.stderr, command.exit_code]
        box.files.write("/tmp/folder/a.txt", "text")
        seen["read"] = box.files.read("/tmp/folder/a.txt")
        seen["listed"] = [entry.name for entry in box.files.list("/tmp/folder")]
        try:
            box.run_code("1")
        except SandboxException as error:
            seen["code"] = str(error)
    return seen


def e2b(key):
    """What `e2b-code-interpreter` sees of a Python pool, by the variables that its users set."""
    from e2b import CommandExitException, FileNotFoundException, NotFoundException, PtySize, SandboxException
    from e2b_code_interpreter import Sandbox

    seen = {}
    heard = []
    with Sandbox.create(timeout=600, metadata={"user": "4711"}, envs={"GREETING": "hello"}) as box:
        code = "import os\nx = 41\nprint(os.environ['GREETING'])\nx + 1"
        ran = box.run_code(code, on_stdout=lambda message: heard.append(message.line))
        seen["stdout"], seen["text"], seen["main"] = ran.logs.stdout, ran.text, [one.is_main_result for one in ran.results]
        seen["heard"] = heard
        seen["kept"] = box.run_code("x").text
        failed = box.run_code("1/0")
        seen["error"] = [failed.error.name, failed.error.value, "ZeroDivisionError" in failed.error.traceback, failed.logs.stderr]
        plot = box.run_code("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()")
        seen["png"] = plot.results[0].png[:8]
        seen["own_env"] = box.run_code("os.environ.get('ONCE')", envs={"ONCE": "now"}).text
        box.run_code("1/0", envs={"ONCE": "then"})
        seen["gone_env"] = box.run_code("print(os.environ.get('ONCE'))").logs.stdout
        seen["bash"] = box.run_code("echo $GREETING; pwd", language="bash").logs.stdout
        try:
            box.run_code("1", language="r")
        except SandboxException as error:
            seen["language"] = str(error)

        written = box.files.write("folder/a b.txt", "text")
        seen["written"] = [written.name, written.path]
        box.files.write("/mnt/data/bytes", bytes(range(256)) * 40_000)
        seen["read"] = box.files.read("folder/a b.txt")
        seen["bytes"] = bytes(box.files.read("bytes", format="bytes")) == bytes(range(256)) * 40_000
        seen["listed"] = sorted([entry.name, entry.type.value, entry.size] for entry in box.files.list("/mnt/data"))
        seen["made"] = [box.files.make_dir("deep/er"), box.files.make_dir("deep/er")]
        moved = box.files.rename("folder/a b.txt", "deep/er/c.txt")
        seen["moved"] = [moved.path, moved.size, moved.permissions]
        box.files.remove("folder")
        seen["exist"] = [box.files.exists("folder"), box.files.exists("deep/er/c.txt")]
        for name, path in (("missing", "nothing"), ("folder", "deep")):
            try:
                box.files.read(path)
            except FileNotFoundException:
                seen[name] = "FileNotFoundException"
            except SandboxException as error:
                seen[name] = type(error).__name__

        command = box.commands.run("echo out; echo err >&2; echo $GREETING $MORE", envs={"MORE": "you"}, cwd="/tmp")
        seen["command"] = [command.stdout, command.stderr, command.exit_code]
        try:
            box.commands.run("exit 3")
        except CommandExitException as error:
            seen["exit"] = error.exit_code
        running = box.commands.run("read line; echo got $line; sleep 1000", background=True, stdin=True)
        box.commands.send_stdin(running.pid, "words\n")
        for stdout, _, _ in running:
            seen["answered"] = stdout
            break
        seen["commands"] = [one.pid == running.pid for one in box.commands.list()]
        seen["killed"] = [box.commands.kill(running.pid), box.commands.kill(running.pid)]

        running = box.commands.run("read line; echo again $line", background=True, stdin=True)
        running.disconnect()
        watched = box.commands.connect(running.pid)
        box.commands.send_stdin(running.pid, "words\n")
        seen["watched"] = watched.wait().stdout

        terminal, shown = box.pty.create(PtySize(rows=30, cols=100)), []
        box.pty.resize(terminal.pid, PtySize(rows=31, cols=101))
        box.pty.send_stdin(terminal.pid, b"stty size; exit 4\n")
        try:
            terminal.wait(on_pty=shown.append)
        except CommandExitException as error:
            seen["terminal"] = [error.exit_code, b"31 101" in b"".join(shown)]

        info = box.get_info()
        seen["info"] = [info.sandbox_id == box.sandbox_id, info.metadata, info.state.value, info.memory_mb]
        before = info.end_at
        box.set_timeout(1200)
        seen["longer"] = (box.get_info().end_at - before).total_seconds() > 500
        seen["of_list"] = [one.sandbox_id == box.sandbox_id for one in Sandbox.list().next_items()]
        again = Sandbox.connect(box.sandbox_id)
        seen["connected"] = again.run_code("x").text
        other = Sandbox.create(timeout=60)
        seen["other"] = other.run_code("'x' in globals()").text
        seen["running"] = [other.is_running(), other.kill(), other.is_running(), other.kill()]
        try:
            Sandbox.connect(other.sandbox_id)
        except NotFoundException:
            seen["gone"] = True
        try:
            box.pause()
        except SandboxException as error:
            seen["pause"] = "not built" in str(error)
        try:
            Sandbox.create(api_key=key[:-1] + "x")
        except Exception as error:  # noqa: BLE001 which one is the SDK's affair, its status is ours
            seen["wrong_key"] = "401" in str(error) or type(error).__name__ == "AuthenticationException"
    seen["killed_by_with"] = box.is_running()
    return seen


def main():
    what, *arguments = sys.argv[1:]
    seen = asyncio.run(mcp(*arguments)) if what == "mcp" else {"langchain": langchain, "e2b": e2b, "e2b_custom": e2b_custom}[what](*arguments)
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
