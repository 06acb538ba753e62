"""Programs that run on a target host, one file each; nothing in here runs on the controller.

The contract of each file:

- It uses the standard library alone, and runs on every Python that a supported distribution has:
  3.11 (Debian 12) and later. It imports no other code of Holdfast.
- It is started with ``python3 -I``: neither its folder, nor the caller's environment, nor
  packages of a user can give it a module.
- `holdfast.shipping` derives where it lies on a host and its text: ``gpu_memory.py`` becomes
  ``/usr/local/sbin/holdfast-gpu-memory``, owned by root.

Two programs need one more package, and each gets it from what starts it: `clouds` runs in the
environment of ``locks/litellm.txt``, `gpu_samples` is sent along with the NVML bindings.

The controller imports these files too, for names and types that both sides must agree on, such as
the path of a configuration file and the fields that are read from it.
"""
