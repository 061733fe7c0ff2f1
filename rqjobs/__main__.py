from rqjobs.cli import main

main(prog_name="rqjobs")
