"""Object stores on this machine that speak the protocols of S3 and of Google's storage.

As a program, `python tests/bucket_servers.py s3` or `gs` serves an empty bucket named
"bucket" until it is killed, and prints its port.
"""

import http
import os
import subprocess
import sys
import time

BUCKETS = ("s3", "gs")


def variables(kind, port):
    """Return the environment in which the clients ask the server on a port."""
    here = f"http://127.0.0.1:{port}"
    if kind == "s3":
        return {
            "AWS_ENDPOINT_URL": here,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    # Otherwise gcsfs asks another service, which has no stand-in, for the kind of bucket.
    zonal = {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
    return {"STORAGE_EMULATOR_HOST": here} | zonal


def start(kind):
    """Return the process of a server and its port."""
    process = subprocess.Popen(
        [sys.executable, __file__, kind], stdout=subprocess.PIPE, text=True
    )
    return process, int(process.stdout.readline())


def _serve_s3():
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    os.environ.update(variables("s3", port))
    boto3.client("s3").create_bucket(Bucket="bucket")
    return port


def _serve_gs():
    import socket

    from gcp_storage_emulator.handlers import objects

    insert = objects.insert

    def conditional(request, response, storage, *args, **kwargs):
        """Put an object unless it exists; the emulator ignores that condition."""
        held = storage.objects.get(request.params["bucket_name"], {})
        if request.query.get("ifGenerationMatch") == ["0"]:
            name = request.data["meta"]["name"]
            if name in held:
                response.status = http.HTTPStatus.PRECONDITION_FAILED
                return response.json({"error": {"message": "conditionNotMet"}})
        return insert(request, response, storage, *args, **kwargs)

    objects.insert = conditional
    # Its table of requests is made by this import.
    from gcp_storage_emulator.server import create_server

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket").start()
    return port


if __name__ == "__main__":
    tests = os.getppid()
    serve = {"s3": _serve_s3, "gs": _serve_gs}[sys.argv[1]]
    print(serve(), flush=True)
    while os.getppid() == tests:
        time.sleep(1)
