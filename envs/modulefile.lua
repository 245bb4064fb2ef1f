-- Example of a module for sites with Lmod: /shared/modulefiles/onevision.lua, after `module use /shared/modulefiles`.
-- A profile names it (`modules: [onevision]`), and the batch script loads it before anything else runs.

whatis("What OneVision's jobs need on a node")

-- SITE: the names of `module avail`. With `container:` Apptainer is enough; the image brings CUDA, NCCL and MPI.
depends_on("apptainer")

-- Without a container, what .venv was built with instead:
-- depends_on("gcc", "cuda/13.0", "openmpi")
