"""A Flask app with Flask-RQ, whose queues are replaced by queues of rqjobs."""

import os

from flask import Flask, current_app
from flask_rq import RQ

import rqjobs

app = Flask("shop")
app.config.update(RQ_CONNECTION=os.environ["REDIS_URL"], RQ_QUEUES=["default", "low"])
rq = RQ(app)
with app.app_context():
    rq.queues.update({name: rqjobs.queue(name) for name in rq.queues})


@rq.job
def greet(name):
    return f"{name} in {current_app.name}"


@rq.job(queue="low")
def slow(name):
    return name
