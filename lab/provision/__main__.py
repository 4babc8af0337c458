"""``python -m lab.provision``: one run of ansible-runner, for :func:`lab.provision.playbook.play`."""

from lab.provision.playbook import main

if __name__ == "__main__":
    main()
