//! The loop: ask the model, execute the calls, tell the model.

use nevertwice::{Engine, KeyError, Request, RunError, Scope};

use crate::Failure;
use crate::model::{Call, Script};
use crate::steps::Steps;
use crate::tools::{Tool, ToolError, World};
use crate::transcript::Transcript;

/// An agent in one conversation.
pub(crate) struct Agent {
    pub(crate) engine: Engine,
    pub(crate) scope: Scope,
    pub(crate) world: World,
    pub(crate) steps: Steps,
}

/// The scope of the calls of a conversation.
pub(crate) fn scope(conversation: &str) -> Result<Scope, KeyError> {
    Scope::new(["agent_tools", conversation])
}

impl Agent {
    /// Holds the conversation from its beginning. What is in the transcript is not asked again, and
    /// what was executed is not executed again, so a conversation that is new and one that is
    /// continued are the same code.
    pub(crate) async fn converse(
        &self,
        model: &Script,
        transcript: &mut Transcript,
    ) -> Result<String, Failure> {
        let mut results = Vec::new();
        for turn in 1.. {
            let reply = match transcript.reply(turn) {
                Some(reply) => reply,
                None => {
                    let reply = model.reply(turn, &results)?;
                    self.steps.make("the model has replied");
                    transcript.append(&reply)?;
                    self.steps.make("the reply is logged");
                    reply
                }
            };
            if reply.calls.is_empty() {
                return Ok(reply.say);
            }
            for (index, call) in reply.calls.iter().enumerate() {
                let place = format!("{turn}.{}", index + 1);
                let result = self.execute(&place, call).await?;
                self.steps.make("the outcome is recorded");
                println!("{place} {}: {result}", call.tool);
                results.push(result);
            }
        }
        unreachable!("a conversation has fewer turns than there are numbers")
    }

    /// Executes a call, or finds out what came of it. Returns what the model is told: a result, or
    /// an error that it may react to.
    ///
    /// An error ends the agent. It must not become a result: told that an outcome is unknown, a
    /// model asks for the call again in its next turn, and that would be another operation.
    async fn execute(&self, place: &str, call: &Call) -> Result<String, Failure> {
        // A call of no tool has no effect, so there is nothing to record: it is refused each time.
        let tool = match Tool::parse(call) {
            Ok(tool) => tool,
            Err(error) => return Ok(format!("error: {error}")),
        };
        let request =
            Request::new(&self.scope, place)?.fingerprint(tool.fingerprint()).recovery(tool.recovery());
        let outcome = self.engine.run(&request, async |lease| {
            self.steps.make("the call is begun");
            tool.execute(&lease, &self.world, &self.steps).await
        });
        match outcome.await {
            Ok(outcome) => Ok(outcome.into_value()),
            Err(RunError::Failed { error: ToolError::Declined(reason), .. }) => Ok(format!("error: {reason}")),
            Err(RunError::Failed { error: ToolError::Broken(error), .. }) => {
                Err(format!("call {place} failed, start the agent again: {error}").into())
            }
            Err(RunError::Unresolved(_) | RunError::Failed { error: ToolError::Unclear(_), .. }) => Err(format!(
                "call {place} may have had its effect: find out, then pass --resolve {place}=done or =rerun"
            )
            .into()),
            Err(RunError::Mismatch) => Err(format!(
                "call {place} is not the one that was executed there, and was refused: \
                 the transcript does not belong to the store"
            )
            .into()),
            Err(error) => Err(format!("call {place}: {error}").into()),
        }
    }
}
